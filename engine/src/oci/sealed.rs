//! Keeps containers from reaching this program (CVE-2019-5736).
//!
//! A container's first process is a clone of this one, so for a moment `/proc/PID/exe` inside a container names our file on the node,
//! and an image can make `/proc/self/exe` its entry point. Whoever opens that for writing later would own the node. So before a
//! container is entered, the command executes itself again from a read-only mount that nothing else holds: its root is the
//! directory and not the file, so that no path leads from the file to the mount's attributes. Where there is no such mount to be
//! had, a sealed copy in memory serves.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{CWD, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_get_seals, fstatvfs, openat};
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::error::{Error, Kind};
use crate::sys::process::{Strings, execveat_with};
use crate::sys::{memory, mount};

/// Returns in the sealed program; `arguments` are those behind `oci`.
pub(super) fn ensure(arguments: &[OsString]) -> Result<(), Error> {
    let failed = |e| Error::with(Kind::Internal, "protect this program from the container", e);
    let mut own = File::open("/proc/self/exe").map_err(failed)?;
    if is_sealed(&own) {
        return Ok(());
    }
    let program = match read_only() {
        Ok(program) => program,
        Err(_) => memory::seal_program("berth-oci", &mut own).map_err(failed)?,
    };
    let words = ["berth".into(), "oci".into()].into_iter().chain(arguments.iter().cloned());
    let words = strings(words.map(OsString::into_vec)).map_err(failed)?;
    let pair = |(name, value): (OsString, OsString)| [name.as_bytes(), b"=", value.as_bytes()].concat();
    let variables = strings(std::env::vars_os().map(pair)).map_err(failed)?;
    let (argv, envp) =
        (Strings::new(words.iter().map(|w| &**w)), Strings::new(variables.iter().map(|v| &**v)));
    Err(failed(execveat_with(program.as_fd(), &argv, &envp)))
}

fn strings(list: impl Iterator<Item = Vec<u8>>) -> std::io::Result<Vec<CString>> {
    list.map(|text| CString::new(text).map_err(Into::into)).collect()
}

/// Nobody can write through what we were executed from.
fn is_sealed(own: &File) -> bool {
    let sealed = fcntl_get_seals(own).is_ok_and(|seals| seals.contains(SealFlags::WRITE | SealFlags::SEAL));
    sealed || fstatvfs(own).is_ok_and(|stat| stat.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// This program's file on a read-only mount of its directory.
fn read_only() -> std::io::Result<OwnedFd> {
    let path = std::fs::read_link("/proc/self/exe")?;
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::NotFound.into());
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(CWD, directory, flags)?;
    let attributes = mount::Attributes {
        set: libc::MOUNT_ATTR_RDONLY,
        propagation: libc::MS_PRIVATE,
        ..Default::default()
    };
    mount::set_attributes(tree.as_fd(), false, &attributes)?;
    let program = openat(&tree, name, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    // It must be the very file that runs, not one that has been put in its place.
    let (ours, found) = (rustix::fs::stat("/proc/self/exe")?, rustix::fs::fstat(&program)?);
    if (ours.st_dev, ours.st_ino) != (found.st_dev, found.st_ino) || tree.as_raw_fd() < 3 {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    Ok(program)
}
