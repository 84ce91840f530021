//! How much a writable layer uses: by descriptor, never following a link, each inode once.
//!
//! A container at work removes and adds files under our eyes: what is gone when its turn comes counts nothing.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, Dir, FileType, Mode, OFlags, Stat};

use crate::Usage;
use crate::error::{FileError, SnapshotError};

/// Deepest directory a container can make that is still counted; the kernel's PATH_MAX allows about half of it.
const DEPTH_MAX: usize = 4096;

/// Everything below and including `root`.
pub(super) fn all(root: &Path) -> Result<Usage, SnapshotError> {
    walk(root, None)
}

/// What differs from `image` below `root`, which is a snapshot of it.
pub(super) fn changed(root: &Path, image: &OwnedFd) -> Result<Usage, SnapshotError> {
    walk(root, Some(image))
}

fn walk(root: &Path, image: Option<&OwnedFd>) -> Result<Usage, SnapshotError> {
    let open = |path: &Path| fs::open(path, DIRECTORY, Mode::empty());
    let top = open(root).map_err(FileError::at("open", root))?;
    let mut count = Count { usage: Usage::default(), seen: HashSet::new() };
    count.directory(&top, image, 0).map_err(FileError::at("measure", root))?;
    Ok(count.usage)
}

const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC).union(OFlags::NOFOLLOW);

struct Count {
    usage: Usage,
    /// Inodes with several names.
    seen: HashSet<u64>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if stat.st_nlink < 2 || is_directory || self.seen.insert(stat.st_ino) {
            self.usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            self.usage.inodes += 1;
        }
    }

    /// `image` is the same directory in the image, if it has one.
    fn directory(
        &mut self,
        directory: &OwnedFd,
        image: Option<&OwnedFd>,
        depth: usize,
    ) -> rustix::io::Result<()> {
        let stat = fs::fstat(directory)?;
        let before = image.and_then(|image| fs::fstat(image).ok());
        if !before.is_some_and(|before| same(&before, &stat)) {
            self.add(&stat);
        }
        let mut below = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = fs::statat(directory, name, fs::AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                below.push(name.to_owned());
                continue;
            }
            let before = image.and_then(|image| fs::statat(image, name, fs::AtFlags::SYMLINK_NOFOLLOW).ok());
            if !before.is_some_and(|before| same(&before, &stat)) {
                self.add(&stat);
            }
        }
        if depth < DEPTH_MAX {
            for name in below {
                let Ok(child) = fs::openat(directory, &name, DIRECTORY, Mode::empty()) else { continue };
                let image = image.and_then(|image| fs::openat(image, &name, DIRECTORY, Mode::empty()).ok());
                self.directory(&child, image.as_ref(), depth + 1)?;
            }
        }
        Ok(())
    }
}

/// The same inode, unchanged since.
fn same(before: &Stat, now: &Stat) -> bool {
    (before.st_ino, before.st_ctime, before.st_ctime_nsec, before.st_size)
        == (now.st_ino, now.st_ctime, now.st_ctime_nsec, now.st_size)
}
