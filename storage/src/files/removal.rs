//! Deleting trees that strangers have made.
//!
//! A container can nest directories deeper than any stack or table of descriptors is. Here a tree is taken down level by level, and what lies
//! below the last level that is kept open is moved up to the top first.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, RenameFlags, openat, renameat_with, statat, unlinkat};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

use super::DIRECTORY;

/// Most directories that are open at once.
const LEVELS_MAX: usize = 100;

/// An open directory without its files.
struct Level {
    directory: OwnedFd,
    /// In the level above.
    name: CString,
    /// Directories that are left in it.
    below: Vec<CString>,
}

/// Deletes a file, or a directory with all that is in it. Follows no link.
pub(super) fn remove(path: &Path) -> Result<()> {
    let top = match open(CWD, path) {
        Err(Errno::NOTDIR | Errno::LOOP) => return unlinkat(CWD, path, AtFlags::empty()),
        other => Level::without_files(other?, CString::default())?,
    };
    let mut levels = vec![top];
    loop {
        let deepest = levels.len() == LEVELS_MAX;
        let Some(here) = levels.last_mut() else { return Ok(()) };
        match here.below.pop() {
            None => {
                let done = levels.pop().map(|level| level.name).unwrap_or_default();
                match levels.last() {
                    Some(above) => unlinkat(&above.directory, done, AtFlags::REMOVEDIR)?,
                    None => unlinkat(CWD, path, AtFlags::REMOVEDIR)?,
                }
            }
            Some(name) if deepest => move_up(&mut levels, &name)?,
            Some(name) => {
                let directory = open(&here.directory, &name)?;
                levels.push(Level::without_files(directory, name)?);
            }
        }
    }
}

/// Moves a directory of the last level to the first one, under a name that nobody has there.
fn move_up(levels: &mut [Level], name: &CString) -> Result<()> {
    let [top, .., last] = levels else { return Err(Errno::INVAL) };
    for number in top.below.len().. {
        let free = CString::new(format!("moved-{number}")).unwrap_or_default();
        match renameat_with(&last.directory, name, &top.directory, &free, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            other => {
                top.below.push(free);
                return other;
            }
        }
    }
    Err(Errno::EXIST)
}

impl Level {
    fn without_files(directory: OwnedFd, name: CString) -> Result<Self> {
        let mut below = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name();
            let kind = match entry.file_type() {
                FileType::Unknown => {
                    FileType::from_raw_mode(statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
                }
                known => known,
            };
            match name.to_bytes() {
                b"." | b".." => {}
                _ if kind == FileType::Directory => below.push(name.to_owned()),
                _ => unlinkat(&directory, name, AtFlags::empty())?,
            }
        }
        Ok(Self { directory, name, below })
    }
}

fn open(at: impl AsFd, path: impl Arg) -> Result<OwnedFd> {
    openat(at, path, DIRECTORY, Mode::empty())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{mkdirat, symlinkat};

    use super::*;

    #[test]
    fn a_tree_of_any_depth_goes_and_nothing_outside_of_it() {
        let place = std::env::temp_dir().join(format!("storage-removal-{}", std::process::id()));
        let (kept, doomed) = (place.join("kept"), place.join("doomed"));
        std::fs::create_dir(&place).unwrap();
        std::fs::write(&kept, b"").unwrap();
        std::fs::create_dir_all(doomed.join("moved-0/x")).unwrap();
        std::fs::write(doomed.join("moved-1"), b"").unwrap();
        symlinkat("..", CWD, doomed.join("up")).unwrap();
        // Two arms, each much deeper than what is kept open.
        for arm in ["a", "b"] {
            let mut at = open(CWD, &doomed).unwrap();
            for level in 0..3_000 {
                let name = if level == 0 { arm } else { "d" };
                mkdirat(&at, name, Mode::RWXU).unwrap();
                at = open(&at, name).unwrap();
            }
        }
        remove(&doomed).unwrap();
        assert!(!doomed.exists() && kept.exists());
        remove(&kept).unwrap();
        assert_eq!(remove(&kept), Err(Errno::NOENT));
        remove(&place).unwrap();
    }
}
