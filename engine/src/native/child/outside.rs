//! Steps of a process that has an external OCI runtime make a container or an exec.
//!
//! It is cloned by the pod's supervisor, so it is in the pod's namespaces but for mounts: of the node's it makes a private copy, in
//! which root and volumes are attached where the bundle says, and which ends with it. What the runtime starts becomes the supervisor's
//! child when the runtime ends, for the supervisor adopts orphans.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change, open_tree};
use rustix::net::{SocketFlags, accept_with};
use rustix::process::{Signal, set_parent_process_death_signal};

use super::bundle::wait_for;
use super::mounts::{COPY, attach_to};
use super::paths::{self, Leaf};
use super::{Child, Detail, Done, READY, SUCCESSOR, TERMINAL, plain, template};
use crate::native::plan::{self, Step};
use crate::sys::process::{self, Cloned, Strings};
use crate::sys::{socket, thread};

impl Child<'_> {
    /// One of the steps of this module.
    pub(super) fn outside_step(&mut self, step: Step<'_>) -> Done {
        match step {
            Step::NodeTree { fd, shm } => self.node_tree(fd, shm),
            Step::Run { arguments, environment, seconds } => {
                self.run_runtime(arguments, environment, seconds)
            }
            Step::Console { fd } => self.console(fd),
            Step::Successor { path } => self.successor(path),
            Step::Done {} => {
                // The container may end before this process does, and then its streams have to be at their ends.
                thread::close_others(self.proof, 0, &[self.channel.as_fd()]).map_err(plain)?;
                rustix::io::write(&self.channel, &[READY]).map_err(plain)?;
                process::exit(0)
            }
            // `step` has served all others.
            _ => Err((Errno::NOSYS, Detail::None)),
        }
    }

    /// What is mounted in the copy is seen by nobody else, and what the node mounts still arrives.
    fn node_tree(&mut self, fd: u64, shm: &CStr) -> Done {
        // A supervisor that is killed takes along what it has under way.
        set_parent_process_death_signal(Some(Signal::KILL)).map_err(plain)?;
        let shared = open_tree(CWD, template::SHM, COPY).map_err(plain)?;
        thread::setns(self.fd(fd)?, libc::CLONE_NEWNS).map_err(plain)?;
        thread::unshare(self.proof, libc::CLONE_NEWNS).map_err(plain)?;
        let inwards = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
        mount_change(c"/", inwards).map_err(plain)?;
        let root = paths::open_root().map_err(plain)?;
        if !shm.is_empty() {
            let target = paths::reach(root.as_fd(), shm, Leaf::Directory)?;
            attach_to(shared.as_fd(), target.as_fd()).map_err(plain)?;
        }
        self.root = Some(root);
        Ok(())
    }

    /// The runtime gets our standard streams, which it hands on to what it starts, and nothing else that is open.
    fn run_runtime(&self, arguments: &[u8], environment: &[u8], seconds: u64) -> Done {
        match process::clone(self.proof, 0, None).map_err(plain)? {
            Cloned::Child => {
                let error = become_runtime(arguments, environment);
                process::exit(if error == Errno::NOENT { 127 } else { 126 })
            }
            Cloned::Parent { pid, pidfd } => wait_for(&pidfd, seconds, Some(pid)),
        }
    }

    /// The runtime has connected and sent before it ended, so there is nothing to wait for.
    fn console(&self, fd: u64) -> Done {
        let connection =
            accept_with(self.fd(fd)?, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).map_err(plain)?;
        let (mut name, mut fds) = ([0; 4096], Vec::new());
        socket::receive(&connection, &mut name, &mut fds).map_err(plain)?;
        let master = fds.pop().ok_or((Errno::NOTTY, Detail::None))?;
        rustix::termios::tcgetwinsize(&master).map_err(plain)?;
        socket::send(&self.channel, &[TERMINAL], &[master.as_fd()]).map_err(plain)
    }

    fn successor(&self, path: &CStr) -> Done {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(plain)?;
        let mut text = [0; 16];
        let length = rustix::io::read(&file, &mut text).map_err(plain)?;
        let text = str::from_utf8(&text[..length]).unwrap_or_default();
        let pid: i32 = text.trim().parse().map_err(|_| (Errno::INVAL, Detail::None))?;
        let [a, b, c, d] = pid.to_le_bytes();
        rustix::io::write(&self.channel, &[SUCCESSOR, a, b, c, d]).map(drop).map_err(plain)
    }
}

/// Returns only on failure.
fn become_runtime(arguments: &[u8], environment: &[u8]) -> Errno {
    let ready = (|| {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        rustix::process::setsid()?;
        rustix::process::chdir(c"/")?;
        thread::close_on_exec_from(3)?;
        thread::reset_signals(thread::IGNORABLE)?;
        rustix::process::umask(Mode::from_raw_mode(0o022));
        std::io::Result::Ok(())
    })();
    let error = match (ready, plan::strings(arguments).next()) {
        (Ok(()), Some(program)) => {
            let arguments = Strings::new(plan::strings(arguments));
            let environment = Strings::new(plan::strings(environment));
            process::execve(program, &arguments, &environment)
        }
        (Ok(()), None) => return Errno::INVAL,
        (Err(error), _) => error,
    };
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
