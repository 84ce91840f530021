//! The pod's namespaces, and the template: a mount namespace with nothing of the node in it.
//!
//! Children are cloned from the template, so making their mount namespace costs a handful of mounts however many the node has, and
//! a step that goes wrong finds nothing of the node to go wrong with.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, makedev, mkdirat, mknodat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    FsPickFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_reconfigure,
    fsconfig_set_flag, fspick, mount_change, move_mount, open_tree, unmount,
};

use super::Podd;
use crate::exec::wire::{HAS_NETNS, HAS_USER, Message, POD_PID, Tag, int};
use crate::native::child::{become_root, new_mount, template};
use crate::native::plan;
use crate::sys::process::{self, Cloned, SingleThreaded};
use crate::sys::{mount, socket, thread};

const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;
const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;

/// Makes this process unattractive: not traceable by what it clones, alone in its session, adopting orphans, deaf to signals. `name` is
/// what ps(1) calls it.
pub(super) fn harden(name: &CStr) -> io::Result<()> {
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    thread::set_mask(u64::MAX)?;
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(name);
    // Without CAP_SYS_RESOURCE the score cannot be lowered; then podd shares the daemon's fate.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-999");
    rustix::process::chdir(c"/")?;
    Ok(())
}

/// Does what a `Setup` message says, in the order in which the steps need each other; an error names its step.
pub(super) fn setup(podd: &mut Podd, message: &mut Message) -> Result<(), (String, io::Error)> {
    let step = |what: &'static str| move |e: io::Error| (what.to_owned(), e);
    let has = message.get(Tag::Has);
    let mut fds = std::mem::take(&mut message.fds).into_iter();
    let netns = if has & HAS_NETNS != 0 { fds.next() } else { None };
    let mut owned = || if has & HAS_USER != 0 { fds.next() } else { None };
    let (user, uts, ipc) = (owned(), owned(), owned());
    for tasks in fds {
        // Out of the daemon's cgroup, so that stopping or limiting the daemon never touches pods.
        rustix::io::write(&tasks, b"0").map_err(|e| ("enter the supervisors' cgroup".into(), e.into()))?;
    }
    if let Some(netns) = netns {
        thread::setns(netns.as_fd(), libc::CLONE_NEWNET)
            .map_err(step("enter the pod's network namespace"))?;
    }
    for (namespace, kind) in [(uts, libc::CLONE_NEWUTS), (ipc, libc::CLONE_NEWIPC)] {
        if let Some(namespace) = namespace {
            thread::setns(namespace.as_fd(), kind).map_err(step("enter the pod's namespaces"))?;
        }
    }
    let flags = message.int(Tag::Flags);
    let new = if user.is_some() { 0 } else { flags };
    thread::unshare(&podd.proof, new | libc::CLONE_NEWNS).map_err(step("make the pod's namespaces"))?;
    if flags & libc::CLONE_NEWUTS != 0 {
        let name = message.text(Tag::Hostname).as_bytes();
        rustix::system::sethostname(name).map_err(|e| ("set the host name".into(), e.into()))?;
    }
    podd.label = message.text(Tag::MountLabel).as_bytes().to_vec();
    podd.complete_template(None, user.is_some()).map_err(step("make the template mount namespace"))?;
    for pair in message.all(Tag::Sysctl) {
        let set = match &user {
            // Those of the network are its administrator's, which we are; the others are for root of the user namespace alone.
            Some(user) if !pair.starts_with(b"net.") => as_root_of(&podd.proof, user, || sysctl(pair)),
            _ => sysctl(pair),
        };
        set.map_err(|e| (format!("set sysctl {}", String::from_utf8_lossy(pair)), e))?;
    }
    if has & POD_PID != 0 {
        let first = first_process(&podd.proof, user.as_ref());
        podd.init = Some(first.map_err(step("start the pod's first process"))?);
    }
    podd.user = user;
    podd.ready = true;
    Ok(())
}

/// Starts the first process of the pod's own PID namespace, which the pod's user namespace must own if it has one.
fn first_process(proof: &SingleThreaded, user: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let flags = int(libc::CLONE_NEWPID);
    let Some(user) = user else {
        return match process::clone(proof, flags, None)? {
            Cloned::Child => process::idle(proof),
            Cloned::Parent { pidfd, .. } => Ok(pidfd),
        };
    };
    let (ours, theirs) = socket::pair()?;
    as_root_of(proof, user, || match process::clone_sibling(proof, flags, None)? {
        Cloned::Child => process::idle(proof),
        Cloned::Parent { pidfd, .. } => socket::send(&theirs, b"S", &[pidfd.as_fd()]),
    })?;
    let mut fds = Vec::new();
    socket::receive(&ours, &mut [0; 1], &mut fds)?;
    fds.pop().ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// Does something in a short-lived copy of this process, as root of a user namespace.
fn as_root_of(
    proof: &SingleThreaded,
    user: &OwnedFd,
    work: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    match process::clone(proof, 0, None)? {
        Cloned::Child => {
            let done = thread::setns(user.as_fd(), libc::CLONE_NEWUSER)
                .and_then(|()| become_root().map_err(|(e, _)| e.into()))
                .and_then(|()| work());
            process::exit(done.err().map_or(0, |e| e.raw_os_error().unwrap_or(libc::EIO)));
        }
        Cloned::Parent { pidfd, .. } => match process::wait(&pidfd)? {
            (0, _) => Ok(()),
            (errno, _) => Err(io::Error::from_raw_os_error(errno)),
        },
    }
}

/// Makes the template the only thing this process sees, in a mount namespace that is its own already. What is in it belongs to no pod
/// if there is no `label`, and pods whose supervisors are forked share it; with one, everything in it has that SELinux label, for the
/// containers of its pod to use what they mount of it. `hierarchies`: directories for cgroups v1 to be mounted in, if any.
pub(super) fn build_template(label: &[u8], hierarchies: &[CString]) -> io::Result<()> {
    let tmpfs = |options: &[u8], attributes| new_mount(c"tmpfs", &plan::labelled(options, label), attributes);
    // Nothing that happens here may travel to the node.
    mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    let root = tmpfs(b"mode\x00755\0size\x0064k\0", NOSUID | NOEXEC)?;
    attach(&root, &path(c"/")?, c"")?;
    rustix::process::fchdir(&root)?;
    rustix::process::pivot_root(c".", c".")?;
    unmount(c".", UnmountFlags::DETACH)?;
    rustix::process::chdir(c"/")?;

    for directory in [template::PROC, template::MASK, template::SHM, template::SYS] {
        mkdirat(CWD, directory, Mode::from_raw_mode(0o755))?;
    }
    place_proc()?;
    let mask = b"mode\x00755\0size\x004k\0nr_inodes\x001\0";
    place(&tmpfs(mask, NOSUID | NODEV | NOEXEC | RDONLY)?, template::MASK)?;
    for (at, major, minor) in template::DEVICES.into_iter().chain([(template::NULL, 1, 3)]) {
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, at, FileType::CharacterDevice, mode, makedev(major, minor))?;
        rustix::fs::chmod(at, mode)?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let null = open_tree(CWD, template::NULL, flags)?;
    // Read-only concerns the inode (chmod, chown), not reading and writing the device.
    let read_only = mount::Attributes { set: RDONLY, ..Default::default() };
    mount::set_attributes(null.as_fd(), false, &read_only)?;
    place(&null, template::NULL)?;
    if !hierarchies.is_empty() {
        place_hierarchies(hierarchies)?;
    }
    mount::set_attributes(root.as_fd(), false, &read_only)
}

/// Mounts the directory in which containers mount their cgroups: one file system for all of them, which nobody can write to. The kernel
/// walks all file systems each time a memory cgroup goes.
fn place_hierarchies(names: &[CString]) -> io::Result<()> {
    mkdirat(CWD, template::HIERARCHIES, Mode::from_raw_mode(0o755))?;
    let directory = new_mount(c"tmpfs", template::HIERARCHIES_OPTIONS, NOSUID | NODEV | NOEXEC)?;
    for name in names {
        match mkdirat(&directory, name.as_c_str(), Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => {}
            made => made?,
        }
    }
    let sealed = fspick(&directory, c"", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    fsconfig_set_flag(&sealed, c"ro")?;
    fsconfig_reconfigure(&sealed)?;
    mount::set_attributes(
        directory.as_fd(),
        false,
        &mount::Attributes { set: RDONLY, ..Default::default() },
    )?;
    place(&directory, template::HIERARCHIES)
}

/// Mounts a procfs in the template, over the one that may be there.
fn place_proc() -> io::Result<()> {
    place(&new_mount(c"proc", b"", NOSUID | NODEV | NOEXEC)?, template::PROC)
}

/// Gives the template another procfs. What is looked up below /proc/sys/net stays in the kernel's memory once for each network namespace
/// that it was looked up for, all under one name, for as long as the procfs and the namespace live: with hundreds of pods that have one
/// procfs in common, the search for the right one takes longer than everything else that is done to set a sysctl. Supervisors that were
/// born before keep the mount namespace they were born in, until they make their own.
pub(super) fn renew_proc(proof: &SingleThreaded) -> io::Result<()> {
    thread::unshare(proof, libc::CLONE_NEWNS)?;
    unmount(template::PROC, UnmountFlags::DETACH)?;
    place_proc()
}

impl Podd {
    /// Puts into the template what is the pod's: its /dev/shm, and what a pod with a user namespace cannot make itself. Makes the template
    /// first if no zygote has, or if the pod has a label, which the shared one has not; the mount namespace is this process's own.
    pub(super) fn complete_template(&mut self, shm: Option<OwnedFd>, user: bool) -> io::Result<()> {
        if !self.template || !self.label.is_empty() {
            build_template(&self.label, &[])?;
        }
        let options = plan::labelled(b"mode\x001777\0size\x0064m\0", &self.label);
        let fresh = || new_mount(c"tmpfs", &options, NOSUID | NODEV | NOEXEC);
        place(&shm.map_or_else(fresh, Ok)?, template::SHM)?;
        if user {
            place(&new_mount(c"sysfs", b"", NOSUID | NODEV | NOEXEC)?, template::SYS)?;
        }
        Ok(())
    }
}

/// Mounts at a place of the template.
fn place(mount: &OwnedFd, at: &CStr) -> io::Result<()> {
    attach(mount, &path(at)?, c"")
}

fn path(at: &CStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(at, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?)
}

/// Attaches a detached mount.
fn attach(mount: &OwnedFd, target: &OwnedFd, name: &CStr) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, c"", target, name, flags)?)
}

/// Writes `key=value` below /proc/sys of the template's procfs. In a key both `.` and `/` separate (sysctl(8)); the daemon has
/// checked that it belongs to a namespace of the pod.
fn sysctl(pair: &[u8]) -> io::Result<()> {
    let pair = std::str::from_utf8(pair).map_err(io::Error::other)?;
    let (key, value) = pair.split_once('=').ok_or(io::ErrorKind::InvalidInput)?;
    let path = format!("sys/{}", key.replace('.', "/"));
    let proc =
        rustix::fs::open(template::PROC, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = openat2(&proc, &*path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    rustix::io::write(&file, value.as_bytes())?;
    Ok(())
}
