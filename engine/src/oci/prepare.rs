//! Opening what a plan refers to, in the node's mount namespace, before the clone: the root, binds, pipes, namespaces.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType as Namespace, Spec};
use rustix::fs::{AtFlags, CWD, FileType, makedev, statat};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::bundle;
use super::compile::Slots;
use super::compile::mounts::{Kindred, Request};
use crate::error::{Error, Kind};
use crate::exec::cgroup;
use crate::sys::mount;

/// Devices every container has, bound where nodes cannot be made (config-linux.md, "Default Devices").
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"];

/// Descriptors of a first process, in the order of their numbers in the plan.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) fds: Vec<OwnedFd>,
    pub(super) slots: Slots,
}

/// What is opened for a container.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) spec: &'a Spec,
    pub(super) rootfs: &'a Path,
    pub(super) cgroup: &'a str,
    pub(super) mounts: &'a [Request],
}

/// Opens everything. `tasks` are the v1 files to join by, `pipes` those on which the process waits.
pub(super) fn prepare(wanted: &Wanted<'_>, tasks: Vec<OwnedFd>, pipes: [File; 2]) -> Result<Prepared, Error> {
    let mut slots = Slots { tasks: tasks.len(), ..Slots::default() };
    let mut fds = tasks;
    let mut push = |fd: OwnedFd| {
        fds.push(fd);
        fds.len() as u64 - 1
    };
    slots.root = push(root(wanted.rootfs)?);
    slots.null = push(null()?);
    slots.pipes = pipes.map(|pipe| push(pipe.into()));
    for (slot, stream) in slots.streams.iter_mut().zip(streams()) {
        let copy = stream.map_err(|e| Error::with(Kind::Internal, "duplicate a standard stream", e))?;
        *slot = push(copy);
    }
    if !bundle::has_namespace(wanted.spec, Namespace::Cgroup)
        && wanted.mounts.iter().any(|m| m.kind == Kindred::Cgroups)
    {
        for (name, fd) in own_cgroups(wanted.cgroup)? {
            slots.cgroups.push((name, push(fd)));
        }
    }
    if bundle::has_namespace(wanted.spec, Namespace::User) {
        for (path, source) in devices(wanted.spec) {
            slots.devices.push((path, push(copy(&source, false)?)));
        }
    }
    for kind in [Namespace::Mount, Namespace::Cgroup] {
        if let Some(Some(path)) = bundle::namespace(wanted.spec, kind) {
            slots.enter.push((push(open_namespace(path)?), kind));
        }
    }
    Ok(Prepared { fds, slots })
}

/// A detached copy of what is at a path.
fn copy(path: &Path, recursive: bool) -> Result<OwnedFd, Error> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path, flags)
        .map_err(|e| Error::with(Kind::InvalidArgument, format!("open {}", path.display()), e))
}

fn root(path: &Path) -> Result<OwnedFd, Error> {
    if !path.is_dir() {
        return Err(Error::invalid("root.path", format!("{} is not a directory", path.display())));
    }
    copy(path, true)
}

/// The node's null device, checked to be one (CVE-2025-31133), on a mount where nobody can change its mode.
fn null() -> Result<OwnedFd, Error> {
    let fd = copy(Path::new("/dev/null"), false)?;
    let failed = |e: std::io::Error| Error::with(Kind::Internal, "copy /dev/null", e);
    let stat = statat(&fd, c"", AtFlags::EMPTY_PATH).map_err(|e| failed(e.into()))?;
    let real =
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == makedev(1, 3);
    if !real {
        return Err(Error::new(Kind::FailedPrecondition, "the node's /dev/null is not the null device"));
    }
    let attributes = mount::Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        propagation: libc::MS_PRIVATE,
        ..Default::default()
    };
    mount::set_attributes(fd.as_fd(), false, &attributes).map_err(failed)?;
    Ok(fd)
}

/// Our standard streams, which become the container's.
fn streams() -> [std::io::Result<OwnedFd>; 3] {
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned();
    [copy(std::io::stdin().as_fd()), copy(std::io::stdout().as_fd()), copy(std::io::stderr().as_fd())]
}

/// A bind with all of its attributes, opened when the process asks for it. Its source may be relative to the bundle.
pub(super) fn bind(request: &Request, bundle: &Path) -> Result<OwnedFd, Error> {
    let Kindred::Bind { source, recursive } = &request.kind else {
        return Err(Error::new(Kind::Internal, format!("{} is no bind", request.destination)));
    };
    let (source, recursive) = (bundle.join(source), *recursive);
    let failed = |e: std::io::Error| {
        Error::with(
            Kind::InvalidArgument,
            format!("mount {} at {}", source.display(), request.destination),
            e,
        )
    };
    let fd = copy(&source, recursive)?;
    // Unless the bundle says otherwise nothing travels.
    let (propagation, all) = match request.propagation {
        0 => (libc::MS_PRIVATE, true),
        said => (said, request.propagate_all),
    };
    // A copy of a shared mount is in its peer group: that is all "shared" can ask for, and "slave" needs it.
    let attributes = mount::Attributes { propagation, ..Default::default() };
    mount::set_attributes(fd.as_fd(), all, &attributes).map_err(failed)?;
    for (recursive, set, clear) in
        [(true, request.set_all, request.clear_all), (false, request.set, request.clear)]
    {
        if set | clear != 0 {
            let attributes = mount::Attributes { set, clear, ..Default::default() };
            mount::set_attributes(fd.as_fd(), recursive, &attributes).map_err(failed)?;
        }
    }
    Ok(fd)
}

/// The container's own directory on every hierarchy, under the name of the hierarchy's mount point.
fn own_cgroups(path: &str) -> Result<Vec<(String, OwnedFd)>, Error> {
    let node = cgroup::node()?;
    let mut out = Vec::new();
    for hierarchy in node.all() {
        let name = hierarchy.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        out.push((name, copy(&hierarchy.path.join(path.trim_start_matches('/')), false)?));
    }
    Ok(out)
}

/// Devices to be bound: the usual ones and the bundle's that the node has under the same path.
fn devices(spec: &Spec) -> Vec<(String, PathBuf)> {
    let listed = spec.linux().as_ref().and_then(|l| l.devices().as_ref()).into_iter().flatten();
    let listed = listed.filter_map(|device| device.path().to_str().map(str::to_owned));
    let mut paths: Vec<String> = DEVICES.iter().map(|d| (*d).to_owned()).chain(listed).collect();
    paths.sort();
    paths.dedup();
    paths.into_iter().map(|path| (path.clone(), PathBuf::from(path))).filter(|(_, p)| p.exists()).collect()
}

/// A namespace by its path.
pub(super) fn open_namespace(path: &Path) -> Result<OwnedFd, Error> {
    if !path.is_absolute() {
        return Err(Error::invalid("linux.namespaces.path", format!("{} is not absolute", path.display())));
    }
    let file = File::open(path).map_err(|e| {
        Error::with(Kind::InvalidArgument, format!("open the namespace {}", path.display()), e)
    })?;
    Ok(file.into())
}
