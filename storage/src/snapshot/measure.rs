//! How much a writable layer uses: by descriptor, never following a link, each inode once.
//!
//! A container at work adds, moves and removes files under our eyes: what is gone when its turn comes counts nothing. It can nest directories
//! deeper than any path is long and any table of descriptors is large: all of them count, and a few are open at a time.

mod branch;

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{self, AtFlags, Dir, FileType, Mode, Stat};
use rustix::io::{Result, fcntl_dupfd_cloexec};

use crate::Usage;
use crate::error::{FileError, SnapshotError};
use crate::files::DIRECTORY;
use branch::Branch;

/// Most directories that are open at once, and as many of the image.
const OPEN_MAX: usize = 100;

/// Everything below and including `root`.
pub(super) fn all(root: &Path) -> std::result::Result<Usage, SnapshotError> {
    walk(root, None)
}

/// What differs from `image` below `root`, which is a snapshot of it.
pub(super) fn changed(root: &Path, image: &OwnedFd) -> std::result::Result<Usage, SnapshotError> {
    let image = image.try_clone().map_err(FileError::at("open the image of", root))?;
    walk(root, Some(image))
}

fn walk(root: &Path, image: Option<OwnedFd>) -> std::result::Result<Usage, SnapshotError> {
    let top = fs::open(root, DIRECTORY, Mode::empty()).map_err(FileError::at("open", root))?;
    Ok(Walk::new(top, image, OPEN_MAX).run().map_err(FileError::at("measure", root))?)
}

/// A measurement.
struct Walk {
    /// The directory being measured.
    here: Branch,
    /// The same in the image, as far down as the image has it.
    image: Option<Branch>,
    /// Directories whose turn has not come yet, each with the depth of the one it is in; the next one last.
    left: Vec<(usize, CString)>,
    usage: Usage,
    /// Inodes with several names.
    seen: HashSet<(u64, u64)>,
}

impl Walk {
    fn new(top: OwnedFd, image: Option<OwnedFd>, open_max: usize) -> Self {
        Self {
            here: Branch::new(top, open_max),
            image: image.map(|image| Branch::new(image, open_max)),
            left: Vec::new(),
            usage: Usage::default(),
            seen: HashSet::new(),
        }
    }

    /// Without recursion: the tree may be deeper than a stack.
    fn run(mut self) -> Result<Usage> {
        self.directory()?;
        while let Some((depth, name)) = self.left.pop() {
            if self.up(depth)? && self.down(&name)? {
                self.directory()?;
            }
        }
        Ok(self.usage)
    }

    /// Goes up to a depth. `false`: the directory that was there has been moved away.
    fn up(&mut self, depth: usize) -> Result<bool> {
        self.here.up(depth)?;
        if let Some(image) = &mut self.image {
            image.up(self.here.depth())?;
        }
        Ok(self.here.depth() == depth)
    }

    /// Goes into a directory. `false`: it is gone.
    fn down(&mut self, name: &CStr) -> Result<bool> {
        let depth = self.here.depth();
        if !self.here.down(name)? {
            return Ok(false);
        }
        if let Some(image) = self.image.as_mut().filter(|image| image.depth() == depth) {
            image.down(name)?;
        }
        Ok(true)
    }

    /// Counts a directory and the files in it, and leaves the directories in it for later.
    fn directory(&mut self) -> Result<()> {
        let (here, depth) = (self.here.last(), self.here.depth());
        let image = self.image.as_ref().filter(|image| image.depth() == depth).map(Branch::last);
        let stat = fs::fstat(here)?;
        let before = image.and_then(|image| fs::fstat(image).ok());
        count(&mut self.usage, &mut self.seen, before, &stat);
        // Not opened again: that fails for a directory that is deleted meanwhile, and reading does not.
        for entry in Dir::new(fcntl_dupfd_cloexec(here, 0)?)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(stat) = fs::statat(here, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.left.push((depth, name.to_owned()));
                continue;
            }
            let before = image.and_then(|image| fs::statat(image, name, AtFlags::SYMLINK_NOFOLLOW).ok());
            count(&mut self.usage, &mut self.seen, before, &stat);
        }
        Ok(())
    }
}

/// Counts an inode, unless the image has it, or another name of it is counted.
fn count(usage: &mut Usage, seen: &mut HashSet<(u64, u64)>, before: Option<Stat>, stat: &Stat) {
    if before.is_some_and(|before| same(&before, stat)) {
        return;
    }
    let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if stat.st_nlink < 2 || is_directory || seen.insert((stat.st_dev, stat.st_ino)) {
        usage.bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
        usage.inodes += 1;
    }
}

/// The same inode, unchanged since.
fn same(before: &Stat, now: &Stat) -> bool {
    (before.st_ino, before.st_ctime, before.st_ctime_nsec, before.st_size)
        == (now.st_ino, now.st_ctime, now.st_ctime_nsec, now.st_size)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;

    fn place(name: &str) -> PathBuf {
        let place = std::env::temp_dir().join(format!("storage-measure-{name}-{}", std::process::id()));
        std::fs::create_dir(&place).unwrap();
        place
    }

    fn open(path: &Path) -> OwnedFd {
        fs::open(path, DIRECTORY, Mode::empty()).unwrap()
    }

    /// A directory in another.
    fn make(at: &OwnedFd, name: &str) -> OwnedFd {
        fs::mkdirat(at, name, Mode::RWXU).unwrap();
        fs::openat(at, name, DIRECTORY, Mode::empty()).unwrap()
    }

    fn write(at: &OwnedFd, name: &str, bytes: &[u8]) {
        let file = fs::openat(at, name, fs::OFlags::CREATE | fs::OFlags::WRONLY, Mode::RUSR).unwrap();
        std::io::Write::write_all(&mut std::fs::File::from(file), bytes).unwrap();
    }

    /// Directories in each other, every hundredth with three files in directories beside the next; the last of them.
    fn nest(top: &Path, depth: usize) -> OwnedFd {
        (0..depth).fold(open(top), |at, depth| {
            for beside in ["a", "b", "z"].iter().filter(|_| depth % 100 == 0) {
                write(&make(&at, beside), "f", b"1");
            }
            make(&at, "d")
        })
    }

    #[test]
    fn a_file_is_counted_however_deep_a_container_hides_it() {
        let place = place("deep");
        let last = nest(&place, 6_000);
        let before = all(&place).unwrap();
        assert_eq!(before.inodes, 1 + 6_000 + 60 * 6);
        write(&last, "hidden", &vec![1; 3 << 20]);
        let after = all(&place).unwrap();
        assert_eq!(after.inodes, before.inodes + 1);
        assert!(after.bytes - before.bytes >= 3 << 20, "{before:?}, {after:?}");
        crate::files::remove(&place).unwrap();
    }

    #[test]
    fn a_daemon_with_few_descriptors_measures_all_the_same() {
        const TEST: &str = "snapshot::measure::tests::a_file_is_counted_however_deep_a_container_hides_it";
        let program = std::env::current_exe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -Sn 128 && exec \"$0\" --exact \"$1\""]).arg(program).arg(TEST);
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
    }

    #[test]
    fn what_an_image_has_is_found_in_it_at_any_depth() {
        let place = place("image");
        nest(&place, 900);
        assert_eq!(changed(&place, &open(&place)).unwrap(), Usage::default());
        crate::files::remove(&place).unwrap();
    }

    #[test]
    fn a_directory_that_is_deleted_before_it_is_read_fails_nothing() {
        let place = place("deleted");
        drop(make(&open(&place), "gone"));
        let mut walk = Walk::new(open(&place), None, OPEN_MAX);
        assert!(walk.down(c"gone").unwrap());
        std::fs::remove_dir(place.join("gone")).unwrap();
        walk.directory().unwrap();
        assert!(walk.up(0).unwrap() && !walk.down(c"gone").unwrap());
        std::fs::remove_dir(&place).unwrap();
    }

    #[test]
    fn files_of_the_image_beside_directories_that_it_does_not_have_count_nothing() {
        let place = place("mixed");
        let (image, container) = (place.join("image"), place.join("container"));
        for top in [&image, &container] {
            std::fs::create_dir_all(top.join("1/2/3/4/5")).unwrap();
        }
        for beside in 0..20 {
            let (file, own) = (format!("1/2/3/4/5/x{beside}/f"), format!("1/2/3/4/5/y{beside}/6/7/8/9"));
            for top in [&image, &container] {
                std::fs::create_dir(top.join(&file).parent().unwrap()).unwrap();
            }
            std::fs::write(image.join(&file), b"1").unwrap();
            // One inode, as a snapshot shows it.
            std::fs::hard_link(image.join(&file), container.join(&file)).unwrap();
            std::fs::create_dir_all(container.join(&own)).unwrap();
        }
        let walk = Walk::new(open(&container), Some(open(&image)), 2);
        assert_eq!(walk.run().unwrap().inodes, 6 + 20 + 20 * 5);
        crate::files::remove(&place).unwrap();
    }
}
