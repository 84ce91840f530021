//! Small files, written so that they are there whole or not at all, and records that notice when they are damaged.
//!
//! A record is one line `berth <kind> <version> sha256:<hex>` and JSON; the digest is over the JSON.

mod removal;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::OFlags;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::error::FileError;

/// Largest record read, in bytes.
const RECORD_MAX: u64 = 256 << 20;

/// How a directory is opened, if it is one itself and not a link to it.
pub(crate) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

/// Writes a new file and flushes it; the directory is the caller's to flush.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let mut file = File::create_new(path).map_err(FileError::at("create", path))?;
    file.write_all(bytes).and_then(|()| file.sync_data()).map_err(FileError::at("write", path))
}

/// Replaces a file durably: written aside, flushed, renamed, directory flushed.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let aside = path.with_extension("new");
    let mut file = File::create(&aside).map_err(FileError::at("create", &aside))?;
    file.write_all(bytes).and_then(|()| file.sync_data()).map_err(FileError::at("write", &aside))?;
    fs::rename(&aside, path).map_err(FileError::at("rename to", path))?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Writes over `bad` what differs from `good`, where it lies: whoever has it open reads the good bytes from then on. Durable when this
/// returns; a power cut leaves some of the damage.
pub(crate) fn mend(bad: &Path, good: &Path) -> Result<(), FileError> {
    let mut from = File::open(good).map_err(FileError::at("open", good))?;
    let to = File::options().read(true).write(true).create(true).truncate(false).open(bad);
    let to = to.map_err(FileError::at("open", bad))?;
    let (mut piece, mut there, mut at) = (vec![0; 1 << 20], vec![0; 1 << 20], 0);
    loop {
        let n = from.read(&mut piece).map_err(FileError::at("read", good))?;
        if n == 0 {
            break;
        }
        // What cannot be read is bad too; a disk often finds another place for it when it is written.
        let same = to.read_exact_at(&mut there[..n], at).is_ok() && there[..n] == piece[..n];
        if !same {
            to.write_all_at(&piece[..n], at).map_err(FileError::at("write", bad))?;
        }
        at += n as u64;
    }
    to.set_len(at).and_then(|()| to.sync_all()).map_err(FileError::at("flush", bad))
}

/// Makes names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|d| d.sync_all()).map_err(FileError::at("flush", path))
}

/// Renames a finished directory into place and flushes the directory that names it. `false`: something is there already.
pub(crate) fn publish(from: &Path, to: &Path) -> Result<bool, FileError> {
    sync_directory(from)?;
    let here = rustix::fs::CWD;
    match rustix::fs::renameat_with(here, from, here, to, rustix::fs::RenameFlags::NOREPLACE) {
        Ok(()) => {}
        Err(rustix::io::Errno::EXIST | rustix::io::Errno::NOTEMPTY) => return Ok(false),
        Err(error) => return Err(FileError::at("rename to", to)(error)),
    }
    to.parent().map_or(Ok(()), sync_directory)?;
    Ok(true)
}

/// Creates a directory, 0700, if it is not there.
pub(crate) fn directory(path: &Path) -> Result<(), FileError> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        result => result.map_err(FileError::at("create", path)),
    }
}

/// Lets ext4 put the directories in this one far from each other (chattr(1), T), where there is room, and not beside what was deleted
/// last: without a journal it looks past each inode that was freed within a minute, one by one, for every file it makes, and
/// containers that come and go leave thousands. Other file systems know no such wish; they need none.
pub(crate) fn spread(path: &Path) {
    use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
    let wish = File::open(path).and_then(|directory| {
        let flags = ioctl_getflags(&directory)?;
        Ok(ioctl_setflags(&directory, flags | IFlags::TOPDIR)?)
    });
    if let Err(error) = wish {
        tracing::debug!(path = %path.display(), %error, "its directories lie where the file system puts them");
    }
}

/// Deletes a file, or a directory with all that is in it, whoever made it and however deep it is; absent is fine. Follows no link.
///
/// # Errors
/// The disk fails, or what is in it may not be deleted (an immutable file, a mount point).
pub fn remove(path: &Path) -> Result<(), FileError> {
    match removal::remove(path) {
        Err(rustix::io::Errno::NOENT) => Ok(()),
        result => result.map_err(FileError::at("delete", path)),
    }
}

/// The bytes of a record.
pub(crate) fn encode<T: Serialize>(kind: &str, version: u32, value: &T) -> Vec<u8> {
    // Our own structs of strings and numbers always serialise.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let mut out = format!("berth {kind} {version} {}\n", Digest::of(&json)).into_bytes();
    out.extend_from_slice(&json);
    out
}

/// Reads a record; damage and other versions are `InvalidData`.
pub(crate) fn decode<T: DeserializeOwned>(path: &Path, kind: &str, version: u32) -> Result<T, FileError> {
    let read = |path: &Path| -> std::io::Result<T> {
        let damaged = || std::io::Error::new(std::io::ErrorKind::InvalidData, "the record is damaged");
        if fs::metadata(path)?.len() > RECORD_MAX {
            return Err(damaged());
        }
        let bytes = fs::read(path)?;
        let end = bytes.iter().position(|b| *b == b'\n').ok_or_else(damaged)?;
        let (head, json) = (&bytes[..end], &bytes[end + 1..]);
        if head != format!("berth {kind} {version} {}", Digest::of(json)).as_bytes() {
            return Err(damaged());
        }
        Ok(serde_json::from_slice(json)?)
    };
    read(path).map_err(FileError::at("read", path))
}

/// The digest of a file, with the algorithm of another.
pub(crate) fn digest(path: &Path, like: &Digest) -> Result<Digest, FileError> {
    let mut file = File::open(path).map_err(FileError::at("open", path))?;
    let (mut hasher, mut buffer) = (like.hasher(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(FileError::at("read", path))? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Bytes on disk of one file or directory, not of what is in it.
pub(crate) fn blocks(fd: impl AsFd) -> std::io::Result<u64> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(u64::try_from(stat.st_blocks).unwrap_or(0) * 512)
}

/// Bytes and inodes of a directory and the files right in it.
pub(crate) fn flat_usage(path: &Path) -> Result<crate::Usage, FileError> {
    let sum = || -> std::io::Result<crate::Usage> {
        let mut usage = crate::Usage { bytes: blocks(File::open(path)?)?, inodes: 1 };
        for entry in fs::read_dir(path)? {
            use std::os::unix::fs::MetadataExt;
            let metadata = entry?.metadata()?;
            if metadata.is_file() {
                usage.bytes += metadata.blocks() * 512;
                usage.inodes += 1;
            }
        }
        Ok(usage)
    };
    sum().map_err(FileError::at("measure", path))
}
