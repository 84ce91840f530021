//! Steps that only OCI bundles need: a template of the process's own, hooks, waiting to be started.
//!
//! A bundle's process is cloned from a command line that sees all of the node, not from a pod's supervisor; so it makes the
//! template itself, before anything of the bundle is looked at. A process that is to stay in the node's mount namespace gets no
//! template: its root file system is a tree that is never attached anywhere (Linux 6.15), so the node's mount table stays as it is.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, mkdirat, mknodat};
use rustix::io::Errno;
use rustix::mount::{
    MountPropagationFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount, open_tree, unmount,
};

use super::mounts::{BOTH, COPY, attach_to, new_mount, refuse_proc};
use super::paths::{self, Leaf};
use super::{BIND, Child, Detail, Done, READY, STAGE, plain, template};
use crate::native::plan::{self, Step};
use crate::sys::process::{self, Cloned, Strings};
use crate::sys::{memory, mount, socket, thread};

const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// Where the node's tree is kept in a template.
const NODE: &CStr = c"/node";
/// Where a user namespace's template has its sysfs.
const SYS: &CStr = c"/sys";

/// What a template holds, as detached mounts.
#[derive(Debug)]
pub(super) struct Alone {
    proc: OwnedFd,
    mask: OwnedFd,
    null: OwnedFd,
}

/// A procfs of this process's PID namespace.
fn procfs() -> Result<OwnedFd, Errno> {
    new_mount(c"proc", b"", NOSUID | NODEV | NOEXEC)
}

/// An empty directory, with an SELinux label or none.
fn empty(label: &[u8]) -> Result<OwnedFd, Errno> {
    let options = plan::labelled(b"mode\x00755\0size\x004k\0nr_inodes\x001\0", label);
    new_mount(c"tmpfs", &options, NOSUID | NODEV | NOEXEC | RDONLY)
}

/// Attaches a mount at a new directory, or over a new file, of the template.
fn place(mount: BorrowedFd<'_>, at: &CStr, directory: bool) -> Result<(), Errno> {
    if directory {
        mkdirat(CWD, at, Mode::from_raw_mode(0o755))?;
    } else {
        mknodat(CWD, at, FileType::RegularFile, Mode::from_raw_mode(0o644), 0)?;
    }
    let target = rustix::fs::open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    move_mount(mount, c"", &target, c"", BOTH)
}

impl<'p> Child<'p> {
    /// One of the steps of this module.
    pub(super) fn bundle_step(&mut self, step: Step<'p>) -> Done {
        match step {
            Step::Sync { stage } => self.sync(stage as u8),
            Step::Template { null, keep, sysfs, label } => self.template(null, keep != 0, sysfs != 0, label),
            Step::RootAt { fd, at } => self.root_at(fd, at),
            Step::RootAlone { fd, null, label } => self.root_alone(fd, null, label),
            Step::Hostname { name } => rustix::system::sethostname(name).map_err(plain),
            Step::Domainname { name } => rustix::system::setdomainname(name).map_err(plain),
            Step::Sysctl { path, value } => self.write_under(c"sys", path, value).map_err(plain),
            Step::FileSystem { kind, options, attributes, propagation, at } => {
                self.file_system(kind, options, attributes, propagation, at)
            }
            Step::Bind { index, at } => self.bind(index as u16, at),
            Step::Hook { path, arguments, environment, before, after, seconds, host } => {
                let what = Program { path, arguments, environment, input: [before, after] };
                self.hook(&what, seconds, host != 0)
            }
            Step::Await { go, verdict } => self.park(go, verdict),
            Step::Umask { mask } => {
                self.umask = mask as u32;
                Ok(())
            }
            Step::Preserve { count } => self.preserve(count as u32),
            Step::NamespaceRoot {} => Self::namespace_root(),
            Step::Enter { fd, kind } => thread::setns(self.fd(fd)?, kind as i32).map_err(plain),
            Step::Propagation { propagation, recursive } => self.propagation(propagation, recursive != 0),
            Step::Personality { domain } => thread::personality(domain).map_err(plain),
            Step::Scheduler { policy, flags, nice, priority, runtime, deadline, period } => {
                let mut wanted = thread::Scheduling::default();
                (wanted.policy, wanted.flags) = (policy as u32, flags);
                (wanted.nice, wanted.priority) = (nice.cast_signed() as i32, priority as u32);
                (wanted.runtime, wanted.deadline, wanted.period) = (runtime, deadline, period);
                thread::set_scheduling(wanted).map_err(plain)
            }
            Step::IoPriority { value } => thread::set_io_priority(value).map_err(plain),
            Step::ChangeRoot { fd } => {
                self.root = Some(self.fd(fd)?.try_clone_to_owned().map_err(plain)?);
                self.change_root()
            }
            other => self.outside_step(other),
        }
    }

    /// Of what the starter had open, only what the plan names and what the program gets stays open.
    fn preserve(&mut self, count: u32) -> Done {
        self.preserved = count;
        let mut keep: Vec<BorrowedFd<'_>> = self.fds.iter().map(AsFd::as_fd).collect();
        keep.push(self.channel.as_fd());
        thread::close_others(self.proof, 3 + count, &keep).map_err(plain)
    }

    /// Says where we are and waits for leave to go on; a starter that has gone takes us with it.
    fn sync(&self, stage: u8) -> Done {
        rustix::io::write(&self.channel, &[STAGE, stage]).map_err(plain)?;
        match rustix::io::read(&self.channel, &mut [0]).map_err(plain)? {
            0 => Err((Errno::PIPE, Detail::None)),
            _ => Ok(()),
        }
    }

    /// The order is the kernel's: a user namespace may mount procfs and sysfs only while it still sees others in full
    /// (user_namespaces(7)), so both are made before the node's tree goes out of sight.
    fn template(&mut self, null: u64, keep: bool, sysfs: bool, label: &[u8]) -> Done {
        let null = self.fd(null)?.try_clone_to_owned().map_err(plain)?;
        let made = (|| {
            mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            let (proc, mask) = (procfs()?, empty(label)?);
            let sys =
                if sysfs { new_mount(c"sysfs", b"", NOSUID | NODEV | NOEXEC | RDONLY).ok() } else { None };
            let root = new_mount(c"tmpfs", b"mode\x00755\0size\x0064k\0", NOSUID | NOEXEC)?;
            let top = paths::open_root()?;
            attach_to(root.as_fd(), top.as_fd())?;
            rustix::process::fchdir(&root)?;
            if keep {
                mkdirat(CWD, c"node", Mode::from_raw_mode(0o700))?;
                rustix::process::pivot_root(c".", c"node")?;
            } else {
                rustix::process::pivot_root(c".", c".")?;
                unmount(c".", UnmountFlags::DETACH)?;
            }
            rustix::process::chdir(c"/")?;
            place(proc.as_fd(), template::PROC, true)?;
            place(mask.as_fd(), template::MASK, true)?;
            if let Some(sys) = sys {
                place(sys.as_fd(), SYS, true)?;
            }
            place(null.as_fd(), template::NULL, false)
        })();
        made.map_err(plain)?;
        if keep {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            self.node = Some(rustix::fs::open(NODE, flags, Mode::empty()).map_err(plain)?);
        }
        Ok(())
    }

    /// Where hooks look for it.
    fn root_at(&mut self, fd: u64, at: &CStr) -> Done {
        let mount = self.fd(fd)?.try_clone_to_owned().map_err(plain)?;
        let private = mount::Attributes { propagation: libc::MS_PRIVATE, ..Default::default() };
        mount::set_attributes(mount.as_fd(), true, &private).map_err(plain)?;
        let node = self.node.as_ref().ok_or((Errno::BADF, Detail::None))?;
        let target = paths::open(node.as_fd(), at, ResolveFlags::empty()).map_err(plain)?;
        attach_to(mount.as_fd(), target.as_fd()).map_err(plain)?;
        self.root = Some(mount);
        Ok(())
    }

    fn root_alone(&mut self, fd: u64, null: u64, label: &[u8]) -> Done {
        let mount = self.fd(fd)?.try_clone_to_owned().map_err(plain)?;
        let null = self.fd(null)?.try_clone_to_owned().map_err(plain)?;
        let private = mount::Attributes { propagation: libc::MS_PRIVATE, ..Default::default() };
        mount::set_attributes(mount.as_fd(), true, &private).map_err(plain)?;
        self.alone = Some(Alone { proc: procfs().map_err(plain)?, mask: empty(label).map_err(plain)?, null });
        self.root = Some(mount);
        Ok(())
    }

    /// A copy of what hides a directory or a file.
    pub(super) fn cover(&self, directory: bool) -> Result<OwnedFd, Errno> {
        match &self.alone {
            Some(alone) => {
                let fd = if directory { &alone.mask } else { &alone.null };
                open_tree(fd, c"", COPY | OpenTreeFlags::AT_EMPTY_PATH)
            }
            None => open_tree(CWD, if directory { template::MASK } else { template::NULL }, COPY),
        }
    }

    /// Writes to a file of our own procfs.
    pub(super) fn write_proc(&self, file: &CStr, text: &[u8]) -> Result<(), Errno> {
        paths::write_proc(self.proc()?.as_fd(), file, text)
    }

    /// Writes below a directory of our own procfs; no part of the path may be a link.
    fn write_under(&self, directory: &CStr, file: &CStr, text: &[u8]) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(self.proc()?, directory, flags, Mode::empty())?;
        paths::write_proc(directory.as_fd(), file, text)
    }

    fn proc(&self) -> Result<OwnedFd, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match &self.alone {
            Some(alone) => rustix::fs::openat(&alone.proc, c".", flags, Mode::empty()),
            None => rustix::fs::open(template::PROC, flags, Mode::empty()),
        }
    }

    /// A mount of the bundle's own at any place of the image but procfs.
    fn file_system(&self, kind: &CStr, options: &[u8], attributes: u64, propagation: u64, at: &CStr) -> Done {
        let mount = new_mount(kind, options, attributes).map_err(plain)?;
        if propagation != 0 {
            let attributes = mount::Attributes { propagation, ..Default::default() };
            mount::set_attributes(mount.as_fd(), false, &attributes).map_err(plain)?;
        }
        let target = paths::reach(self.root()?, at, Leaf::Directory)?;
        refuse_proc(target.as_fd(), at)?;
        attach_to(mount.as_fd(), target.as_fd()).map_err(plain)
    }

    /// A bind of the bundle at any place of the image but procfs.
    fn bind(&self, index: u16, at: &CStr) -> Done {
        let [low, high] = index.to_le_bytes();
        rustix::io::write(&self.channel, &[BIND, low, high]).map_err(plain)?;
        let mut fds = Vec::new();
        socket::receive(&self.channel, &mut [0], &mut fds).map_err(plain)?;
        let mount = fds.pop().ok_or((Errno::PIPE, Detail::None))?;
        let directory = paths::is_directory(mount.as_fd()).map_err(plain)?;
        let leaf = if directory { Leaf::Directory } else { Leaf::File };
        let target = paths::reach(self.root()?, at, leaf)?;
        refuse_proc(target.as_fd(), at)?;
        attach_to(mount.as_fd(), target.as_fd()).map_err(plain)
    }

    /// chroot(2) into the tree that nothing else holds.
    pub(super) fn change_root(&mut self) -> Done {
        rustix::process::fchdir(self.root()?).map_err(plain)?;
        rustix::process::chroot(c".").map_err(plain)?;
        rustix::process::chdir(c"/").map_err(plain)?;
        self.root = Some(paths::open_root().map_err(plain)?);
        Ok(())
    }

    fn propagation(&self, propagation: u64, recursive: bool) -> Done {
        let attributes = mount::Attributes { propagation, ..Default::default() };
        mount::set_attributes(self.root()?, recursive, &attributes).map_err(plain)
    }

    /// Files made from here on belong to the namespace's root. A namespace that maps no root has none to become.
    fn namespace_root() -> Done {
        let _ = rustix::thread::set_thread_groups(&[]);
        let (uid, gid) = (rustix::thread::Uid::ROOT, rustix::thread::Gid::ROOT);
        match rustix::thread::set_thread_res_gid(gid, gid, gid)
            .and_then(|()| rustix::thread::set_thread_res_uid(uid, uid, uid))
        {
            Err(Errno::INVAL) => Ok(()),
            other => other.map_err(plain),
        }
    }

    /// From here on nothing of the starter is open any more, and it may end.
    fn park(&mut self, go: u64, verdict: u64) -> Done {
        let go = self.fd(go)?.try_clone_to_owned().map_err(plain)?;
        let verdict = self.fd(verdict)?.try_clone_to_owned().map_err(plain)?;
        rustix::io::write(&self.channel, &[READY]).map_err(plain)?;
        // One by one: a filter may be in place that has no good word for close_range(2).
        (self.channel, self.root, self.alone) = (verdict, None, None);
        self.fds.clear();
        loop {
            match rustix::io::read(&go, &mut [0]) {
                Err(Errno::INTR) => {}
                Ok(0) => return Err((Errno::PIPE, Detail::None)),
                other => return other.map(drop).map_err(plain),
            }
        }
    }

    /// Runs a hook to its end. What it reads, its environment and its directory are given; nothing else is passed on (CVE-2025-23266).
    fn hook(&self, program: &Program<'_>, seconds: u64, host: bool) -> Done {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        let mut buffer = [0; 24];
        let [before, after] = program.input;
        let input = [before, paths::decimal(pid.into(), &mut buffer), after].concat();
        let input = memory::seal("berth-hook", &input).map_err(plain)?;
        rustix::fs::seek(&input, rustix::fs::SeekFrom::Start(0)).map_err(plain)?;
        let node = if host { self.node.as_ref() } else { None };
        match process::clone(self.proof, 0, None).map_err(plain)? {
            Cloned::Child => {
                let error = program.run(&input, node);
                process::exit(if error == Errno::NOENT { 127 } else { 126 })
            }
            Cloned::Parent { pidfd, .. } => wait_for(&pidfd, seconds, None),
        }
    }
}

/// A hook.
#[derive(Debug)]
struct Program<'a> {
    path: &'a CStr,
    arguments: &'a [u8],
    environment: &'a [u8],
    /// What it reads, before and after the process id.
    input: [&'a [u8]; 2],
}

impl Program<'_> {
    /// Becomes the hook; returns only on failure.
    fn run(&self, input: &OwnedFd, node: Option<&OwnedFd>) -> Errno {
        let ready = (|| {
            if let Some(node) = node {
                rustix::process::fchdir(node)?;
                rustix::process::chroot(c".")?;
            }
            rustix::process::chdir(c"/")?;
            thread::dup_standard(input.as_fd(), 0)?;
            thread::close_on_exec_from(3)?;
            thread::reset_signals(thread::IGNORABLE)?;
            rustix::process::umask(Mode::from_raw_mode(0o022));
            std::io::Result::Ok(())
        })();
        let error = match ready {
            Ok(()) => {
                let arguments = Strings::new(plan::strings(self.arguments));
                let environment = Strings::new(plan::strings(self.environment));
                process::execve(self.path, &arguments, &environment)
            }
            Err(error) => error,
        };
        Errno::from_io_error(&error).unwrap_or(Errno::IO)
    }
}

/// Waits for a hook or a runtime; 0 seconds: as long as it takes. What takes longer is killed, with the process group that it leads.
pub(super) fn wait_for(pidfd: &OwnedFd, seconds: u64, group: Option<i32>) -> Done {
    let limit = Timespec { tv_sec: seconds.cast_signed(), tv_nsec: 0 };
    let limit = if seconds == 0 { None } else { Some(&limit) };
    let ready = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], limit).map_err(plain)?;
    if ready == 0 {
        if let Some(group) = group.and_then(rustix::process::Pid::from_raw) {
            // Not reaped yet, its number cannot have been given to anybody else.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = process::signal(pidfd.as_fd(), libc::SIGKILL);
        let _ = process::wait(pidfd);
        return Err((Errno::TIMEDOUT, Detail::Hook));
    }
    match process::wait(pidfd).map_err(plain)? {
        (0, _) => Ok(()),
        (code, _) => Err((Errno::from_raw_os_error(code.max(1)), Detail::Hook)),
    }
}
