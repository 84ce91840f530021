//! Network namespaces: made, named, opened and removed.
//!
//! A namespace is entered only on a thread of its own, which hands back file descriptors and ends; no other thread of the
//! daemon ever changes namespaces. Each namespace has one bind mount, `<netns_dir>/<id>`, which is how `ip netns` and CNI
//! plugins can name it. The directory is shared with others, so an empty marker `<state_dir>/netns/<id>` is written
//! first: only what has a marker is ours to sweep. [`pool`] makes some ahead;
//! [`counters`] reads what went through the interfaces.

mod counters;
mod pool;

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sched::CloneFlags;
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::error::Error;
use crate::netlink::op::Op;
use crate::netlink::{Failure, NETLINK_ROUTE, Socket, route};
use crate::{NetNs, name, sysctl};
use pool::Pool;

/// `NSFS_MAGIC` of `linux/magic.h`.
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// The namespaces of one daemon.
#[derive(Debug)]
pub(crate) struct Namespaces {
    /// Where they are mounted.
    directory: PathBuf,
    /// Where the markers are.
    markers: PathBuf,
    pool: Pool,
}

/// A new namespace and a socket inside it.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) fd: OwnedFd,
    pub(crate) socket: Socket,
}

impl Fresh {
    /// With its loopback up.
    fn up(mut self) -> Result<Self, Error> {
        route::run(&mut self.socket, &[route::Op::Up("lo".into())], None)?;
        Ok(self)
    }
}

impl Namespaces {
    pub(crate) fn new(directory: &Path, state_dir: &Path) -> Self {
        Self { directory: directory.to_owned(), markers: state_dir.join("netns"), pool: Pool::new(unshare) }
    }

    /// Where the namespace of that id is mounted.
    pub(crate) fn path(&self, id: &str) -> PathBuf {
        self.directory.join(id)
    }

    /// A fresh namespace with `lo` up, mounted under its id, and a netlink socket inside it.
    pub(crate) fn create(&self, id: &str) -> Result<(NetNs, Socket), Error> {
        self.pin(id, || self.pool.take())
    }

    /// As [`create`](Self::create), of a fresh namespace that somebody else has made.
    pub(crate) fn adopt(&self, id: &str, fd: OwnedFd) -> Result<(NetNs, Socket), Error> {
        self.pin(id, || Fresh { socket: socket_in(fd.as_fd())?, fd }.up())
    }

    fn pin(&self, id: &str, fresh: impl FnOnce() -> Result<Fresh, Error>) -> Result<(NetNs, Socket), Error> {
        name::check_id(id, "a network namespace")?;
        self.mark(id)?;
        let made = fresh().and_then(|fresh| self.make(id, fresh));
        if made.is_err() {
            // What is left is still marked: if this fails as well, the next start removes it.
            let _ = self.remove(id);
        }
        made
    }

    fn make(&self, id: &str, fresh: Fresh) -> Result<(NetNs, Socket), Error> {
        let Fresh { fd, socket } = fresh;
        let path = self.mount(fd.as_fd(), id)?;
        Ok((NetNs { fd, path }, socket))
    }

    /// Opens the namespace of that id; `None` if there is no such mount.
    pub(crate) fn open(&self, id: &str) -> Result<Option<NetNs>, Error> {
        name::check_id(id, "a network namespace")?;
        let path = self.path(id);
        let fd =
            match rustix::fs::open(&path, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            {
                Ok(fd) => fd,
                Err(rustix::io::Errno::NOENT) => return Ok(None),
                Err(e) => return Err(Error::file("open", path)(e.into())),
            };
        if is_namespace(fd.as_fd()).map_err(Error::file("examine", &path))? {
            return Ok(Some(NetNs { fd, path }));
        }
        Ok(None) // the empty file of an interrupted creation
    }

    /// Unmounts and unlinks; absent is fine.
    pub(crate) fn remove(&self, id: &str) -> Result<(), Error> {
        name::check_id(id, "a network namespace")?;
        let path = self.path(id);
        match rustix::mount::unmount(&path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => {}
            Err(e) => return Err(Error::file("unmount", path)(e.into())),
        }
        absent_is_fine(fs::remove_file(&path)).map_err(Error::file("remove", &path))?;
        let marker = self.markers.join(id);
        absent_is_fine(fs::remove_file(&marker)).map_err(Error::file("remove", marker))
    }

    /// Ids of all namespaces this daemon ever made and did not remove.
    pub(crate) fn marked(&self) -> Result<BTreeSet<String>, Error> {
        let entries = match fs::read_dir(&self.markers) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
            Err(e) => return Err(Error::file("read", &self.markers)(e)),
        };
        let mut ids = BTreeSet::new();
        for entry in entries {
            let entry = entry.map_err(Error::file("read", &self.markers))?;
            ids.extend(entry.file_name().into_string().ok().filter(|id| name::check_id(id, "").is_ok()));
        }
        Ok(ids)
    }

    fn mark(&self, id: &str) -> Result<(), Error> {
        make_directory(&self.markers, 0o700)?;
        let marker = self.markers.join(id);
        fs::write(&marker, b"").map_err(Error::file("write", marker))
    }

    /// Binds the namespace file onto an empty file.
    fn mount(&self, ns: BorrowedFd<'_>, id: &str) -> Result<PathBuf, Error> {
        make_directory(&self.directory, 0o755)?;
        let path = self.path(id);
        let point = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o444)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)
            .map_err(Error::file("create", &path))?;
        let tree =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let bound = rustix::mount::open_tree(ns, "", tree)
            .map_err(|e| Error::namespace("clone the mount of a network namespace")(e.into()))?;
        let whole = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&bound, "", &point, "", whole)
            .map_err(|e| Error::file("mount", &path)(e.into()))?;
        Ok(path)
    }
}

/// Makes a namespace on a thread of its own, with `lo` up.
fn unshare() -> Result<Fresh, Error> {
    on_own_thread(move || {
        nix::sched::unshare(CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::namespace("make a network namespace")(e.into()))?;
        let fd = current().map_err(Error::namespace("open a new network namespace"))?;
        let socket =
            Socket::open(NETLINK_ROUTE).map_err(Error::kernel("open a socket in a new network namespace"))?;
        Fresh { fd, socket }.up()
    })?
}

/// A netlink socket inside a namespace.
pub(crate) fn socket_in(ns: BorrowedFd<'_>) -> Result<Socket, Error> {
    inside(ns, || Socket::open(NETLINK_ROUTE))?
        .map_err(|e: Failure| Error::kernel("open a socket in a pod's namespace")(e))
}

/// Runs `work` inside a namespace, on a thread that ends with it.
pub(crate) fn inside<T: Send>(ns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    on_own_thread(move || {
        nix::sched::setns(ns, CloneFlags::CLONE_NEWNET)
            .map_err(|e| Error::namespace("enter a network namespace")(e.into()))?;
        Ok(work())
    })?
}

/// Carries out a plan by a socket inside a namespace. Where IPv6 is switched off there, it is switched on for an address that needs it.
pub(crate) fn apply(socket: &mut Socket, ops: &[Op], ns: BorrowedFd<'_>) -> Result<(), Error> {
    match route::run(socket, ops, None) {
        Err(Error::Kernel { source, .. }) if source.errno() == Some(rustix::io::Errno::ACCESS) => {}
        other => return other,
    }
    let links = ops.iter().filter_map(|op| match op {
        Op::Subnet { link, address, .. } if address.is_ipv6() => Some(link.clone()),
        _ => None,
    });
    let links: Vec<String> = links.chain(["lo".to_owned()]).collect();
    inside(ns, || {
        links.iter().try_for_each(|link| sysctl::set(&format!("ipv6/conf/{link}/disable_ipv6"), "0"))
    })??;
    // What was carried out before the refusal may be repeated: addresses are replaced, and no route came before them.
    route::run(socket, ops, None)
}

/// The calling thread's network namespace.
pub(crate) fn current() -> io::Result<OwnedFd> {
    Ok(fs::File::open("/proc/thread-self/ns/net")?.into())
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("netns".into())
            .spawn_scoped(scope, work)
            .map_err(Error::namespace("start a thread"))?;
        thread.join().map_err(|_| {
            Error::namespace("work in a network namespace")(io::Error::other("the thread panicked"))
        })
    })
}

fn is_namespace(fd: BorrowedFd<'_>) -> io::Result<bool> {
    let magic = rustix::fs::fstatfs(fd)?.f_type;
    Ok(u64::try_from(magic).is_ok_and(|m| m == NSFS_MAGIC))
}

fn make_directory(path: &Path, mode: u32) -> Result<(), Error> {
    DirBuilder::new().recursive(true).mode(mode).create(path).map_err(Error::file("create", path))
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests;
