//! A way down into directories that somebody else may move at any time: as deep as there are directories, with a bounded number of
//! descriptors.
//!
//! The last directories of the way are open. Above them each is known by its device and inode number, and is opened again as the `..` of
//! the one below it, if that is still the same; or else from the top, by names.

use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, fstat, openat};
use rustix::io::{Errno, Result, fcntl_dupfd_cloexec};

use crate::files::DIRECTORY;

/// Device and inode number.
type Identity = (u64, u64);

/// The way from a top directory, which stays open, to the last one.
pub(super) struct Branch {
    last: OwnedFd,
    /// From the top down.
    steps: Vec<Step>,
    /// Most directories between the top and the last one that are open.
    open_max: usize,
}

/// From a directory into one that is in it.
struct Step {
    /// The upper one, if it is open.
    above: Option<OwnedFd>,
    name: CString,
    /// Of the lower one.
    identity: Identity,
}

impl Branch {
    pub(super) fn new(top: OwnedFd, open_max: usize) -> Self {
        Self { last: top, steps: Vec::new(), open_max }
    }

    /// Where the way ends.
    pub(super) fn last(&self) -> &OwnedFd {
        &self.last
    }

    /// How many directories below the top it ends.
    pub(super) fn depth(&self) -> usize {
        self.steps.len()
    }

    /// Goes into a directory that is in the last one. `false`: it is not there.
    pub(super) fn down(&mut self, name: &CStr) -> Result<bool> {
        let Some((directory, identity)) = enter(&self.last, name)? else { return Ok(false) };
        let above = Some(std::mem::replace(&mut self.last, directory));
        self.steps.push(Step { above, name: name.to_owned(), identity });
        // Of the first step it is the top.
        if let Some(far @ 1..) = self.steps.len().checked_sub(self.open_max + 1) {
            self.steps[far].above = None;
        }
        Ok(true)
    }

    /// Goes up to a depth, or further where the way there has been moved.
    pub(super) fn up(&mut self, depth: usize) -> Result<()> {
        while self.steps.len() > depth
            && let Some(step) = self.steps.pop()
        {
            if let Some(directory) = step.above {
                self.last = directory;
                continue;
            }
            let wanted = self.steps.last().map(|step| step.identity);
            match enter(&self.last, c"..")? {
                Some((directory, identity)) if Some(identity) == wanted => self.last = directory,
                _ => self.again()?,
            }
        }
        Ok(())
    }

    /// Goes the way from the top again, as far as it is what it was.
    fn again(&mut self) -> Result<()> {
        let Some(Step { above: Some(top), .. }) = self.steps.first() else { return Ok(()) };
        let mut last = fcntl_dupfd_cloexec(top, 0)?;
        for at in 0..self.steps.len() {
            let step = &self.steps[at];
            match enter(&last, &step.name)? {
                Some((directory, identity)) if identity == step.identity => last = directory,
                _ => {
                    self.steps.truncate(at);
                    break;
                }
            }
        }
        self.last = last;
        Ok(())
    }
}

/// Opens a directory; `None`: it cannot be, as when it is gone.
fn enter(at: &OwnedFd, name: &CStr) -> Result<Option<(OwnedFd, Identity)>> {
    match openat(at, name, DIRECTORY, Mode::empty()) {
        Ok(directory) => {
            let stat = fstat(&directory)?;
            Ok(Some((directory, (stat.st_dev, stat.st_ino))))
        }
        // That says nothing about the directory.
        Err(error @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use super::*;

    /// A way through ten directories, two of them open, each of which is called by its depth; and its top.
    fn ten(name: &str) -> (PathBuf, Branch) {
        let top = std::env::temp_dir().join(format!("storage-branch-{name}-{}", std::process::id()));
        fs::create_dir_all(top.join("1/2/3/4/5/6/7/8/9/10")).unwrap();
        let opened = rustix::fs::open(&top, DIRECTORY, Mode::empty()).unwrap();
        let mut branch = Branch::new(opened, 2);
        for depth in 1..=10 {
            assert!(branch.down(&CString::new(depth.to_string()).unwrap()).unwrap());
        }
        assert_eq!(branch.steps.iter().filter(|step| step.above.is_some()).count(), 3);
        (top, branch)
    }

    fn is_at(branch: &Branch, path: &Path) -> bool {
        fstat(branch.last()).unwrap().st_ino == fs::metadata(path).unwrap().ino()
    }

    #[test]
    fn the_way_up_leads_through_the_directories_of_the_way_down() {
        let (top, mut branch) = ten("up");
        for (depth, path) in [(9, "1/2/3/4/5/6/7/8/9"), (4, "1/2/3/4"), (1, "1"), (0, "")] {
            branch.up(depth).unwrap();
            assert!(branch.depth() == depth && is_at(&branch, &top.join(path)));
        }
        assert!(branch.down(c"1").unwrap() && !branch.down(c"gone").unwrap());
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn what_is_moved_below_the_way_leaves_the_rest_of_it_where_it_is() {
        let (top, mut branch) = ten("moved");
        fs::rename(top.join("1/2/3/4/5"), top.join("elsewhere")).unwrap();
        branch.up(3).unwrap();
        assert!(branch.depth() == 3 && is_at(&branch, &top.join("1/2/3")));
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn where_the_way_is_lost_it_ends_at_the_last_directory_that_is_in_its_place() {
        let (top, mut branch) = ten("lost");
        fs::rename(top.join("1/2/3/4/5"), top.join("elsewhere")).unwrap();
        fs::rename(top.join("1/2/3"), top.join("1/2/other")).unwrap();
        fs::create_dir(top.join("1/2/3")).unwrap();
        branch.up(4).unwrap();
        assert!(branch.depth() == 2 && is_at(&branch, &top.join("1/2")));
        fs::remove_dir_all(&top).unwrap();
    }

    #[test]
    fn a_way_whose_directories_are_all_deleted_ends_at_its_top() {
        let (top, mut branch) = ten("deleted");
        fs::remove_dir_all(top.join("1")).unwrap();
        branch.up(5).unwrap();
        assert!(branch.depth() <= 5);
        branch.up(0).unwrap();
        assert!(branch.depth() == 0 && is_at(&branch, &top));
        fs::remove_dir_all(&top).unwrap();
    }
}
