//! Steps that mount. Everything is a detached mount attached by descriptor at both ends; no path string reaches the kernel.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, makedev, mknodat, statat, symlinkat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree, unmount,
};

use super::paths::{self, Leaf};
use super::{Cause, Child, Detail, Done, TERMINAL, plain, template};
use crate::native::plan;
use crate::sys::{mount, socket, thread};

/// Both ends of a move are the descriptors themselves.
pub(super) const BOTH: MoveMountFlags =
    MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH.union(MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH);
/// A detached copy of one mount.
pub(super) const COPY: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// Attaches a detached mount.
pub(super) fn attach_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    move_mount(mount, c"", target, c"", BOTH)
}

/// A file system of its own as a detached mount.
pub(crate) fn new_mount(kind: &CStr, options: &[u8], attributes: u64) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    let mut pairs = plan::strings(options);
    while let Some(key) = pairs.next() {
        match pairs.next() {
            Some(value) if !value.is_empty() => fsconfig_set_string(&context, key, value)?,
            _ => fsconfig_set_flag(&context, key)?,
        }
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::from_bits_retain(attributes as u32);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Refuses to mount a volume into procfs, by whatever links the path leads there (CVE-2019-19921, CVE-2023-28642). Files that
/// lxcfs and the like replace are exempt.
pub(super) fn refuse_proc(target: BorrowedFd<'_>, at: &CStr) -> Done {
    const PROC: u64 = 0x9fa0;
    const EXEMPT: [&[u8]; 8] = [
        b"/proc/cpuinfo",
        b"/proc/diskstats",
        b"/proc/meminfo",
        b"/proc/stat",
        b"/proc/swaps",
        b"/proc/uptime",
        b"/proc/loadavg",
        b"/proc/slabinfo",
    ];
    let is_proc = rustix::fs::fstatfs(target).map_err(plain)?.f_type as u64 == PROC;
    if is_proc && !EXEMPT.contains(&at.to_bytes()) { Err((Errno::PERM, Detail::InProc)) } else { Ok(()) }
}

impl Child<'_> {
    /// The template's root gets covered; `pivot` lets go of it.
    pub(super) fn attach_root(&mut self, fd: u64) -> Done {
        let index = usize::try_from(fd).unwrap_or(usize::MAX);
        let mount = self.fds.get(index).ok_or((Errno::BADF, Detail::None))?.try_clone().map_err(plain)?;
        // A copy of a shared mount is shared, and pivot_root(2) refuses shared mounts.
        let private = mount::Attributes { propagation: libc::MS_PRIVATE, ..Default::default() };
        mount::set_attributes(mount.as_fd(), true, &private).map_err(plain)?;
        let top = paths::open_root().map_err(plain)?;
        attach_to(mount.as_fd(), top.as_fd()).map_err(plain)?;
        self.root = Some(mount);
        Ok(())
    }

    pub(super) fn make_directory(&self, at: &CStr, mode: u64) -> Done {
        let root = self.root()?;
        match paths::open(root, at, ResolveFlags::empty()) {
            Ok(_) => Ok(()),
            Err(Errno::NOENT) => {
                paths::reach(root, at, Leaf::Directory)?;
                // Nobody but us knows the new directory yet; the mode differs from the usual one only for /tmp-like places.
                if mode == 0o755 {
                    return Ok(());
                }
                let set = |parent: BorrowedFd<'_>, name: &CStr| {
                    rustix::fs::chmodat(parent, name, Mode::from_raw_mode(mode as u32), AtFlags::empty())
                };
                paths::in_parent(root, at, set)
            }
            Err(e) => Err(plain(e)),
        }
    }

    pub(super) fn mount(&self, kind: &CStr, options: &[u8], attributes: u64, at: &CStr) -> Done {
        let mount = new_mount(kind, options, attributes).map_err(plain)?;
        let target = paths::reach_strictly(self.root()?, at)?;
        attach_to(mount.as_fd(), target.as_fd()).map_err(plain)
    }

    /// Labels a directory that was just mounted.
    pub(super) fn relabel(&self, at: &CStr, label: &[u8]) -> Done {
        let target = paths::reach_strictly(self.root()?, at)?;
        // An O_PATH descriptor cannot be labelled through.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = rustix::fs::openat(&target, c".", flags, Mode::empty()).map_err(plain)?;
        rustix::fs::fsetxattr(&open, c"security.selinux", label, rustix::fs::XattrFlags::empty())
            .map_err(plain)
    }

    pub(super) fn attach(
        &self,
        fd: u64,
        at: &CStr,
        directory: bool,
        set: u64,
        propagation: u64,
        recursive: bool,
    ) -> Done {
        let mount = self.fd(fd)?;
        // Propagation always concerns the whole tree; attributes only when asked (recursive read-only).
        if propagation != 0 {
            let attributes = mount::Attributes { propagation, ..Default::default() };
            mount::set_attributes(mount, true, &attributes).map_err(plain)?;
        }
        if set != 0 {
            let attributes = mount::Attributes { set, ..Default::default() };
            mount::set_attributes(mount, recursive, &attributes).map_err(plain)?;
        }
        let leaf = if directory { Leaf::Directory } else { Leaf::File };
        let target = paths::reach(self.root()?, at, leaf)?;
        refuse_proc(target.as_fd(), at)?;
        attach_to(mount, target.as_fd()).map_err(plain)
    }

    pub(super) fn share(&self, from: &CStr, at: &CStr) -> Done {
        let mount = open_tree(CWD, from, COPY).map_err(plain)?;
        let target = paths::reach_strictly(self.root()?, at)?;
        attach_to(mount.as_fd(), target.as_fd()).map_err(plain)
    }

    /// All containers of a node have the same directory: what differs is mounted in it. A pod whose supervisor was not born of a zygote, or
    /// of an older one, has none to share.
    pub(super) fn hierarchies(&self, at: &CStr) -> Done {
        let directory = match open_tree(CWD, template::HIERARCHIES, COPY) {
            Err(Errno::NOENT) => {
                let usual = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
                new_mount(c"tmpfs", template::HIERARCHIES_OPTIONS, usual)
            }
            shared => shared,
        };
        let target = paths::reach_strictly(self.root()?, at)?;
        attach_to(directory.map_err(plain)?.as_fd(), target.as_fd()).map_err(plain)
    }

    pub(super) fn share_file(&self, from: &CStr, at: &CStr) -> Done {
        let mount = open_tree(CWD, from, COPY).map_err(plain)?;
        let target = paths::reach(self.root()?, at, Leaf::File)?;
        attach_to(mount.as_fd(), target.as_fd()).map_err(plain)
    }

    pub(super) fn node(&self, at: &CStr, mode: u64, device: u64, uid: u64, gid: u64) -> Done {
        let kind = FileType::from_raw_mode(mode as u32);
        let device = makedev((device >> 32) as u32, device as u32);
        paths::in_parent(self.root()?, at, |parent, name| {
            match mknodat(parent, name, kind, Mode::from_raw_mode(mode as u32), device) {
                Err(Errno::EXIST) => {
                    let found = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
                    let same = FileType::from_raw_mode(found.st_mode) == kind && found.st_rdev == device;
                    if same { Ok(()) } else { Err(Errno::EXIST) }
                }
                Ok(()) if uid != 0 || gid != 0 => {
                    let (uid, gid) =
                        (rustix::fs::Uid::from_raw(uid as u32), rustix::fs::Gid::from_raw(gid as u32));
                    rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                }
                other => other,
            }
        })
    }

    pub(super) fn link(&self, at: &CStr, target: &CStr) -> Done {
        paths::in_parent(self.root()?, at, |parent, name| match symlinkat(target, parent, name) {
            Err(Errno::EXIST) => Ok(()),
            other => other,
        })
    }

    /// A path that does not exist hides nothing.
    pub(super) fn mask(&self, at: &CStr) -> Done {
        let Some(target) = self.existing(at)? else { return Ok(()) };
        let directory = paths::is_directory(target.as_fd()).map_err(plain)?;
        let cover = self.cover(directory).map_err(plain)?;
        attach_to(cover.as_fd(), target.as_fd()).map_err(plain)
    }

    pub(super) fn read_only(&self, at: &CStr) -> Done {
        let Some(target) = self.existing(at)? else { return Ok(()) };
        let flags = COPY | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE;
        let cover = open_tree(&target, c"", flags).map_err(plain)?;
        let attributes = mount::Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        mount::set_attributes(cover.as_fd(), true, &attributes).map_err(plain)?;
        attach_to(cover.as_fd(), target.as_fd()).map_err(plain)
    }

    fn existing(&self, at: &CStr) -> Result<Option<OwnedFd>, Cause> {
        match paths::open(self.root()?, at, ResolveFlags::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(plain(e)),
        }
    }

    /// pivot_root(2), "pivot_root(".", ".")": the old root is stacked on the new one and taken off.
    pub(super) fn pivot(&mut self) -> Done {
        self.node = None;
        if self.alone.is_some() {
            return self.change_root();
        }
        rustix::process::fchdir(self.root()?).map_err(plain)?;
        rustix::process::pivot_root(c".", c".").map_err(plain)?;
        unmount(c".", UnmountFlags::DETACH).map_err(plain)?;
        rustix::process::chdir(c"/").map_err(plain)?;
        self.root = Some(paths::open_root().map_err(plain)?);
        Ok(())
    }

    pub(super) fn set_attributes(&self, at: &CStr, set: u64) -> Done {
        let target = paths::reach_strictly(self.root()?, at)?;
        let attributes = mount::Attributes { set, ..Default::default() };
        mount::set_attributes(target.as_fd(), false, &attributes).map_err(plain)
    }

    pub(super) fn read_only_root(&self) -> Done {
        let attributes = mount::Attributes { set: libc::MOUNT_ATTR_RDONLY, ..Default::default() };
        mount::set_attributes(self.root()?, false, &attributes).map_err(plain)
    }

    /// A terminal pair of the container's own devpts, checked to be one (CVE-2025-52565).
    pub(super) fn terminal(&self, uid: u64, mount_console: bool) -> Done {
        /// `DEVPTS_SUPER_MAGIC` of linux/magic.h.
        const DEVPTS: u64 = 0x1cd1;
        let root = self.root()?;
        let pts = paths::open(root, c"dev/pts", ResolveFlags::NO_SYMLINKS).map_err(plain)?;
        if rustix::fs::fstatfs(&pts).map_err(plain)?.f_type as u64 != DEVPTS {
            return Err((Errno::NOTTY, Detail::None));
        }
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let master = rustix::fs::openat(&pts, c"ptmx", flags, Mode::empty()).map_err(plain)?;
        rustix::pty::unlockpt(&master).map_err(plain)?;
        let flags = rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC;
        let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags).map_err(plain)?;
        socket::send(&self.channel, &[TERMINAL], &[master.as_fd()]).map_err(plain)?;
        rustix::fs::fchown(&slave, Some(rustix::fs::Uid::from_raw(uid as u32)), None).map_err(plain)?;
        rustix::process::ioctl_tiocsctty(&slave).map_err(plain)?;
        if mount_console {
            let console = open_tree(&slave, c"", COPY | OpenTreeFlags::AT_EMPTY_PATH).map_err(plain)?;
            let target = paths::reach(root, c"/dev/console", Leaf::File)?;
            attach_to(console.as_fd(), target.as_fd()).map_err(plain)?;
        }
        (0..=2).try_for_each(|target| thread::dup_standard(slave.as_fd(), target)).map_err(plain)
    }
}
