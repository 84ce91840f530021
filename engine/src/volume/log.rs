//! Container log files: opened below the pod's log directory, and nowhere else.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, mkdirat, openat2};

use crate::{Error, Kind};

/// Opens `path` below `directory` for appending, 0640; parents are made. No symbolic link is followed below `directory`
/// (openat2(2), RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS): the directory is the kubelet's, its content may be a pod's.
pub fn open(directory: &Path, path: &Path) -> Result<OwnedFd, Error> {
    let failed = |e: io::Error| {
        let class = match e.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Kind::ResourceExhausted,
            _ => Kind::FailedPrecondition,
        };
        Error::with(class, format!("open log {}", directory.join(path).display()), e)
    };
    open_below(directory, path).map_err(failed)
}

fn open_below(directory: &Path, path: &Path) -> io::Result<OwnedFd> {
    DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
    let directories = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut below = rustix::fs::openat(CWD, directory, directories, Mode::empty())?;
    let parents = path.parent().into_iter().flat_map(Path::iter);
    for parent in parents {
        match mkdirat(&below, parent, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        below = openat2(&below, parent, directories, Mode::empty(), resolve)?;
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::CREATE
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        | OFlags::NONBLOCK;
    let log = openat2(&below, name, flags, Mode::from_raw_mode(0o640), resolve)?;
    let stat = rustix::fs::fstat(&log)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    rustix::fs::fcntl_setfl(&log, OFlags::APPEND)?;
    Ok(log)
}
