//! How much a writable layer uses: by descriptor, never following a link, each inode once.
//!
//! A container at work removes and adds files under our eyes: what is gone when its turn comes counts nothing.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, Dir, FileType, Mode, Stat};

use crate::Usage;
use crate::error::{FileError, SnapshotError};
use crate::files::DIRECTORY;

/// Deepest directory a container can make that is still counted; the kernel's PATH_MAX allows about half of it.
const DEPTH_MAX: usize = 4096;

/// Everything below and including `root`.
pub(super) fn all(root: &Path) -> Result<Usage, SnapshotError> {
    walk(root, None)
}

/// What differs from `image` below `root`, which is a snapshot of it.
pub(super) fn changed(root: &Path, image: &OwnedFd) -> Result<Usage, SnapshotError> {
    let image = image.try_clone().map_err(FileError::at("open the image of", root))?;
    walk(root, Some(image))
}

fn walk(root: &Path, image: Option<OwnedFd>) -> Result<Usage, SnapshotError> {
    let open = |path: &Path| fs::open(path, DIRECTORY, Mode::empty());
    let top = open(root).map_err(FileError::at("open", root))?;
    let mut count = Count { usage: Usage::default(), seen: HashSet::new() };
    count.tree(top, image).map_err(FileError::at("measure", root))?;
    Ok(count.usage)
}

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

    /// One directory and the files in it. `image` is the same directory in the image, if it has one.
    fn directory(&mut self, directory: OwnedFd, image: Option<OwnedFd>) -> rustix::io::Result<Level> {
        let stat = fs::fstat(&directory)?;
        let before = image.as_ref().and_then(|image| fs::fstat(image).ok());
        if !before.is_some_and(|before| same(&before, &stat)) {
            self.add(&stat);
        }
        let mut below = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = fs::statat(&directory, name, fs::AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                below.push(name.to_owned());
                continue;
            }
            let before =
                image.as_ref().and_then(|image| fs::statat(image, name, fs::AtFlags::SYMLINK_NOFOLLOW).ok());
            if !before.is_some_and(|before| same(&before, &stat)) {
                self.add(&stat);
            }
        }
        Ok(Level { directory, image, below })
    }

    /// A directory with all that is in it: without recursion, for it may be deeper than a stack.
    fn tree(&mut self, top: OwnedFd, image: Option<OwnedFd>) -> rustix::io::Result<()> {
        let mut levels = vec![self.directory(top, image)?];
        loop {
            let deepest = levels.len() > DEPTH_MAX;
            let Some(Level { directory, image, below }) = levels.last_mut() else { return Ok(()) };
            let Some(name) = below.pop().filter(|_| !deepest) else {
                levels.pop();
                continue;
            };
            let open = |at: &OwnedFd| fs::openat(at, &name, DIRECTORY, Mode::empty()).ok();
            if let Some(child) = open(directory) {
                let image = image.as_ref().and_then(open);
                levels.push(self.directory(child, image)?);
            }
        }
    }
}

/// A directory that is being measured.
struct Level {
    directory: OwnedFd,
    image: Option<OwnedFd>,
    /// Directories that are left in it.
    below: Vec<CString>,
}

/// The same inode, unchanged since.
fn same(before: &Stat, now: &Stat) -> bool {
    (before.st_ino, before.st_ctime, before.st_ctime_nsec, before.st_size)
        == (now.st_ino, now.st_ctime, now.st_ctime_nsec, now.st_size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_cannot_nest_directories_so_deep_that_measuring_them_fails() {
        let place = std::env::temp_dir().join(format!("storage-measure-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        let mut at = fs::open(&place, DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH_MAX + 100 {
            fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = fs::openat(&at, "d", DIRECTORY, Mode::empty()).unwrap();
        }
        // As far down as descriptors are allowed (RLIMIT_NOFILE).
        assert!((500..=DEPTH_MAX as u64 + 1).contains(&all(&place).unwrap().inodes));
        crate::files::remove(&place).unwrap();
    }
}
