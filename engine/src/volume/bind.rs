//! Bind mounts as detached clones.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::mount::{OpenTreeFlags, open_tree};

use super::Request;
use crate::exec::PreparedMount;
use crate::image;
use crate::spec::{MountSpec, Propagation};
use crate::{Error, Kind};

/// Makes a missing source as a directory.
pub(super) fn create_missing(path: &Path) -> Result<(), Error> {
    match path.symlink_metadata() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(|e| {
                Error::with(Kind::InvalidArgument, format!("make missing host_path {}", path.display()), e)
            })
        }
        _ => Ok(()),
    }
}

/// A clone of the source and everything mounted below it. Symbolic links are followed, as the kubelet expects.
pub(super) fn prepare(mount: &MountSpec) -> Result<PreparedMount, Error> {
    let path = &mount.host_path;
    let failed =
        |e| Error::with(Kind::InvalidArgument, format!("host_path {}", path.display()), io::Error::from(e));
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let fd = open_tree(CWD, path, flags).map_err(failed)?;
    check_propagation(mount)?;
    prepared(fd, mount)
}

/// A detached mount with its request.
pub(super) fn prepared(fd: OwnedFd, mount: &MountSpec) -> Result<PreparedMount, Error> {
    let stat = rustix::fs::fstat(&fd)
        .map_err(|e| Error::with(Kind::Internal, "fstat of a mount source", io::Error::from(e)))?;
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    Ok(PreparedMount { fd, destination: mount.container_path.clone(), directory, spec: mount.clone() })
}

/// Mounts travel only through a mount that is shared (or, inwards, a slave): mount_namespaces(7).
fn check_propagation(mount: &MountSpec) -> Result<(), Error> {
    let wanted: &[&str] = match mount.propagation {
        Propagation::Private => return Ok(()),
        Propagation::HostToContainer => &["shared:", "master:"],
        Propagation::Bidirectional => &["shared:"],
    };
    let path = &mount.host_path;
    let failed = |e: io::Error| Error::with(Kind::Internal, format!("mount of {}", path.display()), e);
    let stat =
        rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID).map_err(|e| failed(e.into()))?;
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").map_err(failed)?;
    let id = stat.stx_mnt_id.to_string();
    let tags = table.lines().find_map(|line| optional_fields(line, &id)).unwrap_or_default();
    if tags.iter().any(|tag| wanted.iter().any(|want| tag.starts_with(want))) {
        return Ok(());
    }
    let want = wanted.join(" or ").replace(':', "");
    let why = format!("{} is not on a {want} mount: mount --make-shared it", path.display());
    Err(Error::invalid("propagation", why))
}

/// The optional fields of the mountinfo line with this mount id (proc_pid_mountinfo(5), fields 7 to the dash).
fn optional_fields<'a>(line: &'a str, id: &str) -> Option<Vec<&'a str>> {
    let mut fields = line.split(' ');
    (fields.next() == Some(id)).then(|| fields.skip(5).take_while(|field| *field != "-").collect())
}

/// A fresh directory for a path the image declares as a volume, with the owner and mode that path has in the image.
pub(super) fn image_volume(
    images: &dyn image::Driver,
    request: &Request<'_>,
    path: &str,
) -> Result<PreparedMount, Error> {
    let name: String = path.bytes().map(|byte| format!("{byte:02x}")).collect();
    let directory = request.directory.join("volumes").join(name);
    let failed = |e: io::Error| Error::with(Kind::Internal, format!("image volume {path}"), e);
    if !directory.exists() {
        let fresh = directory.with_extension("new");
        crate::journal::file::make_dir(&fresh)?;
        let root = images.mount_image(request.image_id, "", None)?;
        take_attributes(&root, path, &fresh).map_err(failed)?;
        std::fs::rename(&fresh, &directory).map_err(failed)?;
    }
    prepare(&MountSpec { container_path: path.into(), host_path: directory, ..MountSpec::default() })
}

/// Owner and mode of a path in an image; a path the image does not have is root's, 0755.
fn take_attributes(root: &OwnedFd, path: &str, directory: &Path) -> io::Result<()> {
    let inside = path.trim_start_matches('/');
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let target =
        rustix::fs::open(directory, OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let opened = if inside.is_empty() {
        Ok(root.as_fd().try_clone_to_owned()?)
    } else {
        rustix::fs::openat2(root, inside, flags, Mode::empty(), resolve)
    };
    let mode = match opened {
        Ok(source) => {
            let stat = rustix::fs::fstat(&source)?;
            rustix::fs::fchown(
                &target,
                Some(rustix::fs::Uid::from_raw(stat.st_uid)),
                Some(rustix::fs::Gid::from_raw(stat.st_gid)),
            )?;
            Mode::from_raw_mode(stat.st_mode & 0o7777)
        }
        Err(_) => Mode::from_raw_mode(0o755),
    };
    Ok(rustix::fs::fchmod(&target, mode)?)
}
